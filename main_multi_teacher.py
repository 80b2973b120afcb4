"""Move what several trained networks know into one."""

from recombine.cli.main import main

if __name__ == "__main__":
    main("multi_teacher")
