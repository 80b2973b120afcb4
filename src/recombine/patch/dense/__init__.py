"""Patches in the frozen encoder of networks that label pixels or find objects (Table 7)."""
