# SPDX-License-Identifier: Apache-2.0
"""What a user does with a model: look at a checkpoint, see what fits, serve it."""
