"""Where models run: one file per runtime behind `decoding.runtime.Runtime`."""
