"""Laws of loss against parameters, tokens and compute: fitted with a certificate, predicted with intervals.

Open `forms.py` for the equations, `fitting.py` for what a fit is, `mixture.py` for intervals over several forms.
"""
