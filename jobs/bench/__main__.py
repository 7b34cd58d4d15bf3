from jobs.__main__ import run
from jobs.bench import main

raise SystemExit(run("bench", main))
