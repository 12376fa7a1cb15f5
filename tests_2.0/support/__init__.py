"""Helpers of the tests: model folders, a local hub, disks, servers, wire formats."""
