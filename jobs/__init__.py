"""What is run: each module has a `main(argv)`, called by `g1-ray NAME` and by `python -m jobs.NAME` alike."""
