/**
 * The `tapdisk` command. This folder holds the control plane (command line, sockets, handshakes; ordinary asynchronous
 * code on the main thread) and the data plane (worker, disk, vbd; one synchronous loop a disk, in a worker thread). What
 * a VHD looks like is the engine's business, and touching files the port's: neither may be here.
 */

import { Command, CommanderError, Option } from "commander";
import * as z from "zod";
import { messageOf } from "./errors.ts";
import { parseAddress, parseUnixAddress } from "./listen.ts";
import { backends } from "./port.ts";
import { serve } from "./serve.ts";
import { parseStack } from "./stack.ts";

const USAGE_ERROR = 2;
const MIB = 1 << 20;

/** Text that a function understands; the message of what it throws is the issue. */
function text<T>(parse: (text: string) => T) {
  return z.string().transform((value, context) => {
    try {
      return parse(value);
    } catch (error) {
      context.addIssue(messageOf(error));
      return z.NEVER;
    }
  });
}

function integer(minimum: number, maximum: number) {
  const error = `expected a whole number from ${minimum} to ${maximum}`;
  return z
    .string()
    .regex(/^\d+$/, { error, abort: true })
    .transform(Number)
    .refine((value) => value >= minimum && value <= maximum, { error });
}

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

/** The first thing that is wrong, after the argument's name as the user typed it. */
function describe({ issues: [issue] }: z.ZodError): string {
  const name = String(issue?.path[0]);
  const option = name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`);
  return `${name === "disk" ? name : `--${option}`}: ${issue?.message}`;
}

const program = new Command("tapdisk")
  .description("Serves virtual disks.")
  .exitOverride()
  .configureOutput({ outputError: (message, write) => write(message.replace(/^error: /, "tapdisk: ")) });

const serveCommand = program
  .command("serve")
  .description("Serves a disk in the foreground until SIGTERM or SIGINT; prints where, as a URI, when it is ready.")
  .argument("<disk>", "driver and file: vhd:/path, or aio:/path for a raw image")
  .option("--nbd <address>", "serve NBD on unix:/path or tcp:host:port (default: a Unix socket in a new folder)")
  .option("--ring <address>", "serve clients that bring a shared ring, on unix:/path")
  .option("--read-only", "serve the disk for reading", false)
  .option("--direct", "go around the page cache", false)
  .addOption(new Option("--io <how>", "what executes file operations").choices(backends).default("auto"))
  .option("--bitmap-cache <MiB>", "memory for sector bitmaps", "64")
  .option("--poll-us <N>", "microseconds to look for work before sleeping", "0")
  .action((disk: unknown) => {
    const given = serveArguments.safeParse({ ...serveCommand.opts(), disk });
    if (!given.success) {
      return serveCommand.error(`tapdisk: ${describe(given.error)}`);
    }
    return serve(given.data);
  });

try {
  await program.parseAsync();
  // A client that is slow to bring its ring must not keep the program.
  process.exit(0);
} catch (error) {
  if (error instanceof CommanderError) {
    // Commander has said what is wrong. Help and version end with 0.
    process.exit(error.exitCode === 0 ? 0 : USAGE_ERROR);
  }
  process.stderr.write(`tapdisk: ${messageOf(error)}\n`);
  process.exit(1);
}
