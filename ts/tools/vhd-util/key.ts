import { constants } from "node:os";
import { ToolError, UsageError } from "../cli/failure.ts";
import { print } from "../cli/output.ts";
import { suiteCommand } from "../cli/suite.ts";
import { describeImage } from "./image.ts";
import { flag, help, name, valued } from "./options.ts";

const { EOPNOTSUPP } = constants.errno;

/** `vhd-util key`. Encrypted disks are refused everywhere here, so keys can only be looked at. */
export const key = suiteCommand("vhd-util", {
  name: "key",
  summary: "Prints the hash of the key with which an image is encrypted; encryption itself is not supported.",
  usage:
    "usage:\n-C -k KEYPATH [-N NONCE]: calculate keyhash for KEYPATH\n" +
    "-s -n NAME <-k KEYPATH> | -H HASH> [-N NONCE]: set keyhash for NAME\n" +
    "-c -n NAME <-k KEYPATH>: check keyhash for NAME\n-p -n NAME: print keyhash for NAME\n-h help",
  usageTo: "stderr",
  options: {
    name,
    print: flag("p", "print nonce and hash, or none"),
    set: flag("s", "set the hash: refused"),
    check: flag("c", "check a key: refused"),
    calculate: flag("C", "calculate a hash: refused"),
    file: valued("k", "file", "the key", "file"),
    nonce: valued("N", "nonce", "the nonce"),
    hash: valued("H", "hash", "the hash"),
    h: help,
  },
  async run({ options }, jobs) {
    if (options.set || options.check || options.calculate) {
      throw new ToolError("encryption is not supported: nothing was changed", EOPNOTSUPP);
    }
    const { name: path } = options;
    if (path === undefined || options.print !== true) throw new UsageError("-p and -n are needed");
    const image = await describeImage(jobs, path, {});
    if (image.problem !== null) throw new ToolError(image.problem.message, image.problem.errno);
    print(image.batmap?.keyHash?.join(" ") ?? "none");
    return 0;
  },
});
