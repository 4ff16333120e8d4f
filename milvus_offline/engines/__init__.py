"""Engines that people bring, Ray and Spark: thin adapters over picklable pieces."""
