"""From a config to a run: its objects, its work directory, its training, and what is made of it afterwards."""
