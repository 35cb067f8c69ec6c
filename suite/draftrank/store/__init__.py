"""Results on disk: the SQLite store and the JSON bundles that are published from it."""
