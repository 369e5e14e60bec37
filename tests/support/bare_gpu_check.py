"""gpu-check where nothing but NumPy can be imported, in its child processes too, which import this
script."""

import sys


class Nothing:
    """Finds vicort and NumPy, and refuses what else is not Python's own."""

    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names | {"numpy", "vicort", "__mp_main__"}:
            raise ImportError(f"{name}: there is no module but NumPy")


sys.meta_path.insert(0, Nothing())

from vicort.benchmarks.gpu.check import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
