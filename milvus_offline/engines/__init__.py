"""Engines that people bring: Arrow readers, Ray, Spark, Dask. Thin adapters over picklable pieces and tasks."""
