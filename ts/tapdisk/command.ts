import { Option } from "commander";
import * as z from "zod";
import { integer, text } from "../tools/cli/arguments.ts";
import { createTool, type ToolCommand } from "../tools/cli/program.ts";
import { parseAddress, parseUnixAddress } from "./listen.ts";
import { backends } from "./port.ts";
import { serve } from "./serve.ts";
import { parseStack } from "./stack.ts";

const MIB = 1 << 20;

const serveArguments = z
  .object({
    disk: text(parseStack),
    nbd: text(parseAddress).optional(),
    ring: text(parseUnixAddress).optional(),
    readOnly: z.boolean(),
    direct: z.boolean(),
    io: z.enum(backends),
    bitmapCache: integer(1, 2047),
    pollUs: integer(0, 1_000_000),
  })
  .transform((given) => ({
    nbd: given.nbd,
    ring: given.ring,
    disk: {
      stack: given.disk,
      readOnly: given.readOnly,
      direct: given.direct,
      backend: given.io,
      bitmapCacheBytes: given.bitmapCache * MIB,
      pollMicroseconds: given.pollUs,
    },
  }));

/** The command line of `tapdisk`. */
export function tapdiskCommand(): ToolCommand {
  const program = createTool("tapdisk", "Serves virtual disks.", {
    examples: [
      { text: "Serve a disk on a Unix socket", command: "tapdisk serve vhd:disk.vhd --nbd unix:/run/disk.sock" },
      { text: "Serve a raw image for reading only", command: "tapdisk serve aio:disk.img --read-only" },
    ],
    exitStatus: [
      ["0", "the disk was served and closed"],
      ["1", "something failed, or not everything could be made durable"],
      ["2", "the command line is wrong"],
    ],
    seeAlso: [],
  });
  const command = program
    .command("serve")
    .description("Serves a disk in the foreground until SIGTERM or SIGINT; prints where, as a URI, when it is ready.")
    .argument("<disk>", "driver and file: vhd:/path, or aio:/path for a raw image")
    .option("--nbd <address>", "serve NBD on unix:/path or tcp:host:port (default: a Unix socket in a new folder)")
    .option("--ring <address>", "serve clients that bring a shared ring, on unix:/path")
    .option("--read-only", "serve the disk for reading", false)
    .option("--direct", "go around the page cache", false)
    .addOption(new Option("--io <how>", "what executes file operations").choices(backends).default("auto"))
    .option("--bitmap-cache <MiB>", "memory for sector bitmaps", "64")
    .option("--poll-us <N>", "microseconds to look for work before sleeping at most; 0: never", "100")
    .action((disk: unknown) => serve(command.parseArguments(serveArguments, { disk })));
  return program;
}
