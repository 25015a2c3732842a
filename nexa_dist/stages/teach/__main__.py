"""python -m nexa_dist.stages.teach"""

from nexa_dist.stages.entry import run_main

if __name__ == "__main__":
    run_main("teach")
