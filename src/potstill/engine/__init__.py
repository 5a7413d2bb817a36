"""Engines that run lists of tasks: inline or in processes."""
