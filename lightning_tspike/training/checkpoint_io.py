"""How checkpoints get to the disk: whole, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from fsspec.core import url_to_fs  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from typing_extensions import override

from ..files.atomic import whole_file

__all__ = ["AtomicCheckpointIO"]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name in its own folder and renames it when it is on the disk.

    Lightning's own plugin writes to the system's temporary folder first. Where that is on another filesystem, its last
    step is a copy, and a full disk or a kill leaves part of a checkpoint in place of the one before.

    ``tspike fit`` uses it by itself. Files elsewhere than on a local filesystem are left to Lightning.

    Example:
        >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], callbacks=[BestCheckpoint(), LastCheckpoint()])
    """

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: What Lightning saves.
            path: The file; folders on the way to it are made.
            storage_options: Must be None, as for Lightning's own.

        Raises:
            OSError: The file cannot be written, say because the disk is full; what was at ``path`` is as it was.
        """
        filesystem, name = url_to_fs(str(path))
        if storage_options is not None or not isinstance(filesystem, LocalFileSystem):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        file = Path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with whole_file(file) as stream:
                torch.save(checkpoint, stream)
        except (OSError, RuntimeError) as error:  # torch gives up with an error of its own when writing fails
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            raise OSError(cause.errno, cause.strerror, str(file)) from error
