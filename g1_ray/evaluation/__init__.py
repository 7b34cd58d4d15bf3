"""How good a player is, and why: players and games come in, runs, tables, clips, the lab's findings go out.

May import every wing up to cluster."""
