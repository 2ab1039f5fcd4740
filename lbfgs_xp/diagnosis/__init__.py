"""`diagnose`: whether a function is fit for L-BFGS, before it is minimised.

`probe.py` evaluates the function on the host; `looks.py` looks at one property each; `result.py` is
what they say; `diagnose.py` is the public function.
"""
