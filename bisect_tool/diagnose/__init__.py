"""Why a stage makes error: causes with stable codes, found by changing one thing at a time."""
