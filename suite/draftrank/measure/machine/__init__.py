"""The machine: its class, and disturbances while a session runs."""
