"""python -m nexa_dist.stages.filter"""

from nexa_dist.stages.entry import run_main

if __name__ == "__main__":
    run_main("filter")
