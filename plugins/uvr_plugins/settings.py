"""Checks of settings that policies and judges share."""

import attrs

share = attrs.validators.and_(attrs.validators.ge(0.0), attrs.validators.le(1.0))
