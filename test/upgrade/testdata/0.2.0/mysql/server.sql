-- SPDX-License-Identifier: Apache-2.0
-- What release 0.2.0 left on a MySQL 9.7, for any admin, and a row of kine's. One statement a line.
-- Test data: the passwords are nobody's.
CREATE ROLE IF NOT EXISTS `vczky4jsiiaw4uwlxwjcx6uv2oo`
CREATE USER IF NOT EXISTS 'vczky4jsiiaw4uwlxwjcx6uv2oa'@'%' IDENTIFIED WITH caching_sha2_password BY 'Frozen-test-data.Nobodys~secret.slot-a-1' REQUIRE SSL WITH MAX_USER_CONNECTIONS 50 PASSWORD EXPIRE NEVER
CREATE USER IF NOT EXISTS 'vczky4jsiiaw4uwlxwjcx6uv2ob'@'%' IDENTIFIED WITH caching_sha2_password BY 'Frozen-test-data.Nobodys~secret.slot-b-2' REQUIRE SSL WITH MAX_USER_CONNECTIONS 50 PASSWORD EXPIRE NEVER
CREATE DATABASE IF NOT EXISTS `vczky4jsiiaw4uwlxwjcx6uv2o` CHARACTER SET utf8mb4
GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX ON `vczky4jsiiaw4uwlxwjcx6uv2o`.* TO 'vczky4jsiiaw4uwlxwjcx6uv2oa'@'%'
GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX ON `vczky4jsiiaw4uwlxwjcx6uv2o`.* TO 'vczky4jsiiaw4uwlxwjcx6uv2ob'@'%'
-- in the database
CREATE TABLE kine (id integer PRIMARY KEY, name varchar(630))
INSERT INTO kine VALUES (1, '/registry/health')
