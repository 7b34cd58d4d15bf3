"""What happened, for people and for other tools.

The folder of a run or an evaluation comes in; a page, data sets, inspect-ai's logs or an explanation go out.
May import every wing up to evaluation.
"""
