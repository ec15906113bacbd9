"""The command line as a module: `python -m service …` is `mics …`."""

from service.cli.main import main

if __name__ == "__main__":
    main()
