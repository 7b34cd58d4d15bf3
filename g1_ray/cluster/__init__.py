"""The machines that a run works on: joined or started, and whether it fits on them.

A config and nodes come in; needs of memory, a placement or an error that says what helps go out.
May import the ground floor, models, config and engines.
"""
