"""Networks on disk and on the Hub: folders, checkpoints, cards, publishing. Each is a module to import from."""
