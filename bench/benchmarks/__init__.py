"""The suite that airspeed velocity runs; how to run it is in the README."""
