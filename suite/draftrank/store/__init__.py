"""Results on disk: the SQLite store and the published JSON bundles."""
