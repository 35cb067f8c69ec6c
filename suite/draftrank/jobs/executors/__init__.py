"""Where jobs run: in this process, in processes of their own, on a Ray cluster."""
