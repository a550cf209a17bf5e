"""Paired parity: would the engine judge the same pictures differently?"""
