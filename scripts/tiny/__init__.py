# SPDX-License-Identifier: Apache-2.0
"""A tiny EXAONE-4.5 that really sees: its task, its training, its checkpoint."""
