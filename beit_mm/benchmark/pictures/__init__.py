"""Pictures of what the models learned, each with its numbers: what tools/visualize.py and the page of a suite show."""
