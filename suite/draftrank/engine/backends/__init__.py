"""Where models run: one file per runtime behind `engine.runtime.Runtime`."""
