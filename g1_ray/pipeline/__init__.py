"""A training run: two graphs, their actors, the buffer, the loop; a config comes in, a run folder goes out.

May import every wing up to evaluation."""
