"""Speed measurements: ``python -m benchmarks.NAME``. Nothing here is part of the test suite."""
