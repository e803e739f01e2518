-- The storage keys that the engine has loaded since its start: store::codec::kind_code of each, and its version in the same place;
-- NULL before its report. The newest version of an engine does not tell which older ones the engine has.
ALTER TABLE engines ADD COLUMN loaded_kinds integer[];
ALTER TABLE engines ADD COLUMN loaded_versions integer[];
ALTER TABLE engines DROP COLUMN newest_versions;
