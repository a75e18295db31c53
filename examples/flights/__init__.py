"""The demo on real data: every flight that left New York in 2013, from CSV to proven read models."""

from .projections import AircraftUtilisation, DelayBoard

__all__ = ["AircraftUtilisation", "DelayBoard"]
