"""The default run in two processes of this machine, and in one with two devices."""
