/**
 * What all commands share: arguments, help, what is said where, progress, running jobs, and their manual pages and
 * completions (`reference/`). What a command does with an image is not here.
 */

import { styleText } from "node:util";
import prettyBytes from "pretty-bytes";
import { interrupt } from "./interrupt.ts";

/** What a shell says of a program whose reader went away (SIGPIPE). */
const BROKEN_PIPE_STATUS = 141;

type Style = Parameters<typeof styleText>[0];

/** Where a text goes to; colours are for terminals, and NO_COLOR is heard. */
export type Stream = NodeJS.WriteStream;

/** The text in a style, if the stream is a terminal that shall have colours. */
export function styled(style: Style, text: string, stream: Stream = process.stdout): string {
  return styleText(style, text, { stream });
}

/** Prints a line of the command's result. */
export function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

/** Prints a value as one line of JSON. */
export function printJson(value: unknown): void {
  print(JSON.stringify(value));
}

/** Tells the user something that is no result. */
export function say(line: string): void {
  process.stderr.write(`${line}\n`);
}

/** Bytes as people read them. */
export function formatBytes(bytes: number): string {
  return prettyBytes(bytes, { binary: true });
}

/** Has the program end as others do when nobody reads its output any more. To be called once, early. */
export function survivePipes(): void {
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code !== "EPIPE") throw error;
    interrupt(BROKEN_PIPE_STATUS);
  });
  // Nobody is left to be told.
  process.stderr.on("error", () => {});
}
