"""The Lightning side: module, reference, optimizer, callbacks."""
