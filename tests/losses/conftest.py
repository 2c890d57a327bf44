"""Helpers of these tests show their asserts like tests."""

import pytest

pytest.register_assert_rewrite("contract_suite")
