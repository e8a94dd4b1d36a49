"""What one library forces, one file a library: what is set or patched, why, and where the library says so.

``tests/test_quirks.py`` has a test for each that fails when its cause is gone, so that it can be deleted.
"""
