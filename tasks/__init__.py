"""Worked tasks on real data. They use the front door of flaxtrain only."""
