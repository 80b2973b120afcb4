"""Move what several trained networks know into one."""

from src.core.entry import main

if __name__ == "__main__":
    main("src.transfer.multi_teacher", "multi_teacher/multi_teacher")
