-- SPDX-License-Identifier: Apache-2.0
-- What release 0.2.0 left on a MariaDB 11.8, for any admin, and a row of kine's. One statement a line.
-- Test data: the passwords are nobody's.
CREATE ROLE IF NOT EXISTS `vczky4jsiiaw4uwlxwjcx6uv2oo`
CREATE USER IF NOT EXISTS 'vczky4jsiiaw4uwlxwjcx6uv2oa'@'%' IDENTIFIED BY PASSWORD '*E88B5D56299CE7D7708935D09431C3BA3B2A2ABB' REQUIRE SSL WITH MAX_USER_CONNECTIONS 50 PASSWORD EXPIRE NEVER
CREATE USER IF NOT EXISTS 'vczky4jsiiaw4uwlxwjcx6uv2ob'@'%' IDENTIFIED BY PASSWORD '*98FB9EC3EBB49F88E2C5ACC019684B760537F4DF' REQUIRE SSL WITH MAX_USER_CONNECTIONS 50 PASSWORD EXPIRE NEVER
CREATE DATABASE IF NOT EXISTS `vczky4jsiiaw4uwlxwjcx6uv2o` CHARACTER SET utf8mb4
GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX ON `vczky4jsiiaw4uwlxwjcx6uv2o`.* TO 'vczky4jsiiaw4uwlxwjcx6uv2oa'@'%'
GRANT SELECT, INSERT, UPDATE, DELETE, CREATE, ALTER, INDEX ON `vczky4jsiiaw4uwlxwjcx6uv2o`.* TO 'vczky4jsiiaw4uwlxwjcx6uv2ob'@'%'
-- in the database
CREATE TABLE kine (id integer PRIMARY KEY, name varchar(630))
INSERT INTO kine VALUES (1, '/registry/health')
