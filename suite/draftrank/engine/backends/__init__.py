"""Where models run: one file per runtime behind `engine.backends.base.Runtime`."""
