import { errnoValue } from "../cli/failure.ts";
import { print } from "../cli/output.ts";

/** Does something; if it fails, prints what the original prints then, before the error goes its way. */
export async function announcing<T>(line: (errno: string) => string, work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    print(line(`-${errnoValue(error)}`));
    throw error;
  }
}
