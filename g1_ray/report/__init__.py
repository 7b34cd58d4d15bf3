"""What happened, for people and other tools: a folder comes in, a page, data sets, logs, an explanation go out.

May import every wing up to evaluation."""
