"""The experiment platform: specs, training on Ray, tracking and reports around the `detector` library."""
